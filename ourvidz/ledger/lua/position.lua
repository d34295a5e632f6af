local id = ARGV[4]
local queue = redis.call('HGET', key('job', id), 'queue')
return queue and redis.call('ZRANK', key('queued', queue), id)
