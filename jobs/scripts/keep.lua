-- Keeps the intermediates of a micro-batch that are too large for its record. ARGV: name, TTL in seconds, data.
even_if_full()
call('SET', P .. 'intermediate:' .. ARGV[1], ARGV[3], 'EX', ARGV[2])
return 1
