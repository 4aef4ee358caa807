-- What is kept under an idempotency key, or ''. ARGV: the key's name.
return call('GET', P .. 'idempotency:' .. ARGV[1]) or ''
