-- Opens a new generation of jobs that failed or expired: own attempts, own deadline. ARGV for each job: id, head,
-- deadline, attempts_max. Replies a verdict for each: 'replayed', 'gone' (there is no record, or its input was dropped), else
-- the state that forbids it. The sweeper fills the window with them. Whoever asks again, because a connection broke, is
-- told the same again.
local verdicts = {}
for i = 1, #ARGV, 4 do
  local id, deadline = ARGV[i], ARGV[i + 2]
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, 'state', 'line', 'head')
  local verdict = job[1] or 'gone'
  if verdict == ENDS.fail or verdict == ENDS.expire then
    verdict = 'gone'
    if call('HEXISTS', key, 'input') == 1 then
      verdict = 'replayed'
      call('HDEL', key, 'document', 'ended', 'code', 'stage', 'attempt', 'cancel')
      call('HSET', key, 'state', 'queued', 'head', ARGV[i + 1], 'deadline', deadline, 'limit', ARGV[i + 3])
      call('PERSIST', key)
      unlist_dead_letter(id)
      call('ZADD', P .. 'deadlines', deadline, id)
      wait(job[2], {NOW, id})
    end
  elseif verdict == 'queued' and job[3] == ARGV[i + 1] then
    verdict = 'replayed'
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
