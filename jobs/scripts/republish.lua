-- Gives unleased micro-batches a new sequence number, which voids their old messages. ARGV: number and
-- sequence of each, as the sweeper saw them. Replies the micro-batches to publish.
even_if_full()
local made = {}
for i = 1, #ARGV, 2 do
  local number = ARGV[i]
  local batch = call('HMGET', P .. 'microbatch:' .. number, 'sequence', 'holder', 'line', 'stage')
  if batch[1] == ARGV[i + 1] and batch[2] == '' then
    made[#made + 1] = publish_again(number, batch[3], batch[4])
  end
end
return made
