-- A worker's sign of life: its slots, and the leases of what it holds. ARGV[6..]: holder, description, lease in
-- ms, number of pools, then pool and slots for each, then number and epoch of each micro-batch.
-- Replies the numbers whose lease it no longer has.
local holder, lease, pools = ARGV[6], tonumber(ARGV[8]), tonumber(ARGV[9])
call('ZADD', P .. 'workers-seen', NOW, holder)
call('HSET', P .. 'workers', holder, ARGV[7])
for i = 10, 9 + 2 * pools, 2 do
  call('SADD', P .. 'pools', ARGV[i])
  call('HSET', P .. 'slots:' .. ARGV[i], holder, ARGV[i + 1])
end
local lost = {}
for i = 10 + 2 * pools, #ARGV, 2 do
  local key = P .. 'microbatch:' .. ARGV[i]
  local batch = call('HMGET', key, 'holder', 'epoch', 'line')
  if batch[1] == holder and batch[2] == ARGV[i + 1] then
    call('HSET', key, 'lease', NOW + lease)
    call('ZADD', P .. 'live:' .. pool_of(batch[3]), NOW + lease, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
