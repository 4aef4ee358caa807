-- Commits a stage, fenced by the epoch of the lease. ARGV: number, epoch, stage, next stage or '', reference
-- to the intermediates, stages so far, microseconds that each job cost, the jobs that go on (ids, blank between),
-- then for each job that leaves here: id, event ('complete', 'fail' or 'retry'), document, error code, delay in ms.
-- Replies {1 or 0 when the lease was lost, micro-batches to publish, ended, 1 when the micro-batch goes on}.
even_if_full()
local number, epoch, stage, following, going_on = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[8]
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'epoch', 'stage', 'line', 'holder', 'cancels')
if batch[1] ~= epoch or batch[2] ~= stage or batch[4] == '' then return {0, {}, {}, 0} end
local line = batch[3]

for i = 9, #ARGV, 5 do
  local id, event = ARGV[i], ARGV[i + 1]
  local job = event == 'retry' and call('HMGET', P .. 'job:' .. id, 'state', 'microbatch', 'cancel')
  if not job or job[3] then
    finish(id, event, ARGV[i + 2], ARGV[i + 3], stage, number)
  elseif job[1] == 'queued' and job[2] == number then
    try_again(id, line, tonumber(ARGV[i + 4]))
  end
end
if batch[5] then    -- cancellations were promised while the stage ran: this is the boundary where they take effect
  for id in string.gmatch(going_on, '%S+') do
    if call('HEXISTS', P .. 'job:' .. id, 'cancel') == 1 then finish(id, 'cancel', nil, nil, stage, number) end
  end
end

local cost = P .. 'cost:' .. string.match(line, '^[^/]+/[^/]+/(.+)$')
local before = tonumber(call('HGET', cost, stage) or ARGV[7])
call('HSET', cost, stage, math.floor(0.8 * before + 0.2 * tonumber(ARGV[7])))

local made, goes_on = {}, following ~= '' and going_on ~= ''
if goes_on then
  call('HSET', key, 'stage', following, 'published', NOW, 'again', 0, 'lease', 0, 'holder', '', 'reference', ARGV[5], 'stages', ARGV[6],
    'members', going_on)
  call('ZADD', P .. 'live:' .. pool_of(line), NOW + LOST_AFTER, number)
else
  close(number, line)
  fill(pool_of(line), made)
end
announce()
return {1, made, ended, goes_on and 1 or 0}
