-- Note that a sweep runs now.
-- Arguments: token.
-- Keys: sweep, call.
-- Returns: the seconds since the sweep before, '' for the first.
-- Events: none.
local token = unpack(ARGV, 4)

local gap = memoized(token)
if gap then return gap end
local last = redis.call('HGET', key('sweep'), 'at')
redis.call('HSET', key('sweep'), 'at', timestamp(now))
return memoize(token, last and timestamp(now - tonumber(last)) or '')
