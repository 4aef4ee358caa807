-- A worker says goodbye: its slots no longer count. ARGV[1]: holder.
even_if_full()
call('ZREM', P .. 'workers-seen', ARGV[1])
call('HDEL', P .. 'workers', ARGV[1])
call('ZREM', P .. 'starting', ARGV[1])
for _, pool in ipairs(call('SMEMBERS', P .. 'pools')) do call('HDEL', P .. 'slots:' .. pool, ARGV[1]) end
return 1
