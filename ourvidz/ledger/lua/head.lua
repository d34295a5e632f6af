local event = redis.call('ZRANGE', key('rows', ARGV[4]), 0, 0)[1]
return event and { event, redis.call('HGETALL', key('event', event)) }
