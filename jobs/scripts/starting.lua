-- A worker loads its models. ARGV: holder, within how many ms it will be ready.
even_if_full()
call('ZADD', P .. 'starting', NOW + ARGV[2], ARGV[1])
return 1
