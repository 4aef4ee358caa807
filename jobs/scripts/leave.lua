-- A worker says goodbye: its slots no longer count. ARGV[6]: holder.
call('ZREM', P .. 'workers-seen', ARGV[6])
call('HDEL', P .. 'workers', ARGV[6])
for _, pool in ipairs(call('SMEMBERS', P .. 'pools')) do call('HDEL', P .. 'slots:' .. pool, ARGV[6]) end
return 1
