local name = key('worker', ARGV[4])
if redis.call('EXISTS', name) == 1 then redis.call('HSET', name, 'left', 1) end
return 1
