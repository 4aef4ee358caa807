-- A worker's sign of life: its slots, and the leases of what it holds. ARGV: holder, description, lease in
-- ms, number of pools, then pool and slots for each, then number and epoch of each micro-batch.
-- Replies {now, the numbers whose lease it no longer has, the numbers whose jobs are all cancelled}.
even_if_full()
local holder, lease, pools = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
call('ZADD', P .. 'workers-seen', NOW, holder)
call('HSET', P .. 'workers', holder, ARGV[2])
if pools > 0 then call('ZREM', P .. 'starting', holder) end
for i = 5, 4 + 2 * pools, 2 do
  call('SADD', P .. 'pools', ARGV[i])
  call('HSET', P .. 'slots:' .. ARGV[i], holder, ARGV[i + 1])
end
local lost, cancelled = {}, {}
for i = 5 + 2 * pools, #ARGV, 2 do
  local key = P .. 'microbatch:' .. ARGV[i]
  local batch = call('HMGET', key, 'holder', 'epoch', 'line', 'cancels')
  if batch[1] == holder and batch[2] == ARGV[i + 1] then
    call('HSET', key, 'lease', NOW + lease)
    call('ZADD', P .. 'live:' .. pool_of(batch[3]), NOW + lease, ARGV[i])
    if batch[4] == 'all' then cancelled[#cancelled + 1] = ARGV[i] end
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return {NOW, lost, cancelled}
