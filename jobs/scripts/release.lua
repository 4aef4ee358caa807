-- Gives a micro-batch back unharmed (its intermediate cannot be read, or the stage was cut off): it starts again at preprocess,
-- under a new sequence number. ARGV[6..]: number, epoch. Replies {1 or 0 when the lease was lost, to publish}.
local number, epoch = ARGV[6], ARGV[7]
local key = P .. 'microbatch:' .. number
local batch = call('HMGET', key, 'epoch', 'line', 'holder')
if batch[1] ~= epoch or batch[3] == '' then return {0, {}} end
local sequence = call('INCR', P .. 'sequence')
call('HSET', key, 'stage', 'preprocess', 'lease', 0, 'holder', '', 'reference', '', 'stages', '',
  'sequence', sequence, 'published', NOW)
call('ZADD', P .. 'live:' .. pool_of(batch[2]), NOW + LOST_AFTER, number)
return {1, {{number, tostring(sequence), 'preprocess', batch[2], ''}}}
