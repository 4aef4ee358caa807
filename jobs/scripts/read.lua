-- Reads jobs for whoever polls, and expires what is past its deadline. ARGV: ids. Replies for each id: '' when
-- there is no record; {state, document} when a worker or an earlier script wrote the document; {state, '', head,
-- attempt, stage, ended, code, 1 when this read expired it} otherwise (state 'processing' and its stage come from the
-- micro-batch).
local answers = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local key = P .. 'job:' .. id
  local job = call('HMGET', key, 'state', 'document', 'head', 'attempt', 'microbatch', 'deadline', 'stage', 'ended',
    'code')
  local here = 0
  if job[1] == 'queued' and tonumber(job[6]) <= NOW then
    here = 1
    even_if_full()
    local stage = job[5] and call('HGET', P .. 'microbatch:' .. job[5], 'stage')
    finish(id, 'expire', nil, 'deadline-passed', stage or '')
    job = call('HMGET', key, 'state', 'document', 'head', 'attempt', 'microbatch', 'deadline', 'stage', 'ended', 'code')
  end
  if not job[1] then
    answers[#answers + 1] = ''
  elseif job[2] then
    answers[#answers + 1] = {job[1], job[2]}
  else
    local state, stage = job[1], job[7] or ''
    if job[5] then
      local batch = call('HMGET', P .. 'microbatch:' .. job[5], 'stage', 'epoch')
      if batch[2] and tonumber(batch[2]) > 0 then state, stage = 'processing', batch[1] end
    end
    answers[#answers + 1] = {state, '', job[3], tonumber(job[4] or 1), stage, tonumber(job[8] or 0), job[9] or '', here}
  end
end
announce()
return answers
