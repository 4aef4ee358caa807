-- Gives a micro-batch back. ARGV: number, epoch, how, error code. How: 'unharmed' (its intermediate cannot be read, or
-- the worker must go): it starts again at preprocess under a new sequence number, without those whose cancellation was
-- promised, a few times, then its jobs are charged an attempt; 'failed' (the stage had to be ended, or its process must
-- be): its jobs come back as suspects, and one that ran alone is charged.
-- Replies {1 or 0 when the lease was lost, to publish, ended}.
even_if_full()
local number, epoch, how, code = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'epoch', 'line', 'holder', 'stage', 'members', 'suspect')
if batch[1] ~= epoch or batch[3] == '' then return {0, {}, {}} end
local line, stage = batch[2], batch[4]
local returned = call('HINCRBY', key, 'returned', 1)
if how == 'failed' or returned > RETURNS_MAX then
  recover(number, line, stage, batch[5], batch[6] == '1' or how ~= 'failed', code)
  announce()
  return {1, fill(pool_of(line), {}), ended}
end
local open = 0
for id in string.gmatch(batch[5], '%S+') do
  local job = call('HMGET', P .. 'job:' .. id, 'state', 'microbatch', 'cancel')
  if job[1] == 'queued' and job[2] == number then
    if job[3] then finish(id, 'cancel', nil, nil, stage, number) else open = open + 1 end
  end
end
announce()
if open == 0 then
  close(number, line)
  return {1, fill(pool_of(line), {}), ended}
end
local sequence = call('INCR', P .. 'sequence')
call('HSET', key, 'stage', 'preprocess', 'lease', 0, 'holder', '', 'reference', '', 'stages', '',
  'sequence', sequence, 'published', NOW)
call('ZADD', P .. 'live:' .. pool_of(line), NOW + LOST_AFTER, number)
return {1, {{number, tostring(sequence), 'preprocess', line, ''}}, ended}
