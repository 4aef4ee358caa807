-- Opens a new generation of jobs that failed or expired: own attempts, own deadline. ARGV for each job: id, head,
-- deadline, attempts_max. Replies a verdict for each: 'replayed', 'gone' (there is no record, or its input was dropped), else
-- the state that forbids it. The sweeper fills the window with them. Whoever asks again, because a connection broke, is
-- told the same again.
local verdicts, lines = {}, {}
for i = 1, #ARGV, 4 do
  local id, deadline = ARGV[i], ARGV[i + 2]
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, 'state', 'line', 'head', 'tenant')
  local verdict = job[1] or 'gone'
  if verdict == ENDS.fail or verdict == ENDS.expire then
    verdict = 'gone'
    if call('HEXISTS', key, 'input') == 1 then
      verdict = 'replayed'
      call('HDEL', key, 'document', 'ended', 'code', 'stage', 'attempt', 'cancel', 'joined')
      call('HSET', key, 'state', 'queued', 'head', ARGV[i + 1], 'deadline', deadline, 'limit', ARGV[i + 3])
      call('PERSIST', key)
      unlist_dead_letter(id)
      call('ZADD', P .. 'deadlines', deadline, id)
      local tenant = job[4]    -- none in a record of the version before, whose end would not be counted either
      if tenant then opened[tenant] = (opened[tenant] or 0) + 1 end
      call('ZADD', P .. 'line:' .. job[2], turn_of(job[2], tenant or '', 1), id)
      line_up(job[2])
      lines[job[2]] = true
    end
  elseif verdict == 'queued' and job[3] == ARGV[i + 1] then
    verdict = 'replayed'
  end
  verdicts[#verdicts + 1] = verdict
end
count_open()
for line in pairs(lines) do keep_turns(line) end
return verdicts
