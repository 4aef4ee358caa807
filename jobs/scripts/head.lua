-- The head of a job that can be run again, '' of any other. ARGV: id.
local job = call('HMGET', P .. 'job:' .. ARGV[1], 'state', 'head')
return (job[1] == ENDS.fail or job[1] == ENDS.expire) and job[2] or ''
