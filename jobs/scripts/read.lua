-- Reads jobs for whoever polls, and expires what is past its deadline. ARGV: ids. Replies for each id: '' when
-- there is no record; {state, document} when a worker or an earlier script wrote the document; {state, document of the job
-- that it joined, head} when it shares that; {state, '', head, attempt, stage, ended, code, 1 when this read expired it,
-- place, line} otherwise (state 'processing' and its stage come from the micro-batch; a follower is told where its leader is).
-- Place: how many jobs stand before it in its line, -1 in the window, -2 while it waits for its next attempt.
local function place_of(id, line)
  return call('ZRANK', P .. 'line:' .. line, id) or call('ZSCORE', P .. 'retries', id) and -2 or -1
end

local fields = {'state', 'document', 'head', 'attempt', 'microbatch', 'deadline', 'stage', 'ended', 'code', 'joined', 'line',
  'follows', 'cache'}
local answers = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, unpack(fields))
  local here = 0
  if job[1] == 'queued' and tonumber(job[6]) <= NOW then
    here = 1
    even_if_full()
    local stage = job[5] and call('HGET', P .. 'microbatch:' .. job[5], 'stage')
    finish(id, 'expire', nil, 'deadline-passed', stage or '')
    job = call('HMGET', key, unpack(fields))
  end
  if not job[1] then
    answers[#answers + 1] = ''
  elseif job[10] and (job[2] or job[1] == ENDS.complete) then
    answers[#answers + 1] = {job[1], job[2] or call('HGET', P .. 'job:' .. job[10], 'document') or '', job[3]}
  elseif job[2] then
    answers[#answers + 1] = {job[1], job[2]}
  else
    local state, stage, place, number = job[1], job[7] or '', -1, job[5]
    if job[12] then
      id = call('HGET', P .. 'flights', flight_of(job[11], job[13])) or id
      number = call('HGET', P .. 'job:' .. id, 'microbatch')
    end
    if number then
      local batch = call('HMGET', P .. 'microbatch:' .. number, 'stage', 'epoch')
      if batch[2] and tonumber(batch[2]) > 0 then state, stage = 'processing', batch[1] end
    elseif state == 'queued' then
      place = place_of(id, job[11])
    end
    answers[#answers + 1] = {state, '', job[3], tonumber(job[4] or 1), stage, tonumber(job[8] or 0), job[9] or '', here,
      place, job[11]}
  end
end
announce()
return answers
