-- Commits a stage, fenced by the epoch of the lease. ARGV[6..]: number, epoch, stage, next stage or '', reference
-- to the intermediates, stages so far, microseconds that each job cost, the jobs that go on (ids, blank between),
-- then for each job that leaves here: id, event ('complete', 'fail' or 'retry'), document, error code, delay in ms.
-- Replies {1 or 0 when the lease was lost, micro-batches to publish, ended, 1 when the micro-batch goes on}.
local number, epoch, stage, following = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'epoch', 'stage', 'line', 'holder')
if batch[1] ~= epoch or batch[2] ~= stage or batch[4] == '' then return {0, {}, {}, 0} end
local line = batch[3]

for i = 14, #ARGV, 5 do
  local id, event = ARGV[i], ARGV[i + 1]
  if event == 'retry' then
    local job = call('HMGET', P .. 'job:' .. id, 'state', 'microbatch')
    if job[1] == 'queued' and job[2] == number then
      call('HINCRBY', P .. 'job:' .. id, 'attempt', call('HEXISTS', P .. 'job:' .. id, 'attempt') == 1 and 1 or 2)
      call('HDEL', P .. 'job:' .. id, 'microbatch')
      call('ZADD', P .. 'retries', NOW + tonumber(ARGV[i + 4]), id)
    end
  else
    finish(id, event, ARGV[i + 2], ARGV[i + 3], stage, number)
  end
end

local cost = P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$')
local before = tonumber(call('HGET', cost, stage) or ARGV[12])
call('HSET', cost, stage, math.floor(0.8 * before + 0.2 * tonumber(ARGV[12])))

local made, goes_on = {}, following ~= '' and ARGV[13] ~= ''
if goes_on then
  call('HSET', key, 'stage', following, 'published', NOW, 'again', 0, 'lease', 0, 'holder', '', 'reference', ARGV[10], 'stages', ARGV[11],
    'members', ARGV[13])
  call('ZADD', P .. 'live:' .. pool_of(line), NOW + LOST_AFTER, number)
else
  close(number, line)
  fill(pool_of(line), made)
end
announce()
return {1, made, ended, goes_on and 1 or 0}
