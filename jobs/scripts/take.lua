-- Takes the lease of a micro-batch for one stage. ARGV: number, stage, sequence, holder, lease in ms.
-- Replies {verdict, micro-batches to publish, ended, ...}. Verdicts: 'taken' with {now, epoch, reference, stages so far,
-- members, line, suspect}, each member {place in the micro-batch, id, head, attempt, input}; else why the message is dropped: 'gone' (ended
-- or lost), 'superseded' (published again since), 'passed' (a copy of an earlier stage's message), 'held' (somebody
-- has it; whether that one is alive is for the sweeper to judge), 'empty' (all its jobs have ended).
even_if_full()
local number, stage, sequence, holder, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'line', 'stage', 'sequence', 'holder', 'reference', 'stages', 'members', 'suspect',
  'published')
local line = batch[1]
if not line then return {'gone', {}, {}} end

if batch[3] ~= sequence then return {'superseded', {}, {}} end
if batch[2] ~= stage then return {'passed', {}, {}} end
local queue = queue_of(line, stage)
if tonumber(batch[9]) > tonumber(call('HGET', P .. 'seen', queue) or 0) then
  call('HSET', P .. 'seen', queue, batch[9])    -- a queue is first in, first out: what was published before is lost
end
if batch[4] ~= '' then return {'held', {}, {}} end

local members, place, first_attempts = {}, -1, 0
local fields = {'state', 'microbatch', 'deadline', 'head', 'attempt', 'cancel'}
if stage == 'preprocess' then fields[7] = 'input' end    -- the later stages get intermediates
for id in string.gmatch(batch[7], '%S+') do
  place = place + 1
  local job = call('HMGET', P .. 'job:' .. id, unpack(fields))
  if job[1] == 'queued' and job[2] == number then
    if job[6] or tonumber(job[3]) <= NOW then
      finish(id, 'expire', nil, 'deadline-passed', stage)
    else
      members[#members + 1] = {place, id, job[4], tonumber(job[5] or 1), job[7] or ''}
      if not job[5] then first_attempts = first_attempts + 1 end
    end
  end
end
announce()
if #members == 0 then
  close(number, line)
  return {'empty', fill(pool_of(line), {}), ended}
end
if first_attempts > 0 and stage == 'preprocess' then
  local version = string.match(line, '^[^/]+/[^/]+/(.+)$')
  if call('HEXISTS', P .. 'retry-turns', version) == 1 then
    call('HINCRBY', P .. 'retry-turns', version, -RETRY_CREDIT_MS * first_attempts)
  end
end
local epoch = call('HINCRBY', key, 'epoch', 1)
call('HSET', key, 'lease', NOW + lease, 'granted', lease, 'holder', holder)
call('ZADD', P .. 'live:' .. pool_of(line), NOW + lease, number)
return {'taken', {}, ended, NOW, epoch, batch[5], batch[6], members, line, tonumber(batch[8])}
