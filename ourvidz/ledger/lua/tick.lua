local token = ARGV[4]
local gap = said_before(token)
if gap then return gap end
local last = redis.call('HGET', key('sweep'), 'at')
redis.call('HSET', key('sweep'), 'at', stamp(now))
return say(token, last and stamp(now - tonumber(last)) or '')
