-- Take or renew the lease of a periodic duty, which one keeper at a time performs. A lease says nothing about the
-- time: whoever sees it unchanged for its whole length takes it over, so no clock that is set can prolong it.
-- Arguments: name, holder, lapsed ('<holder>:<renewals>' of the lease that the caller found lapsed, '' for none).
-- Keys: duty.
-- Returns: { the holder, its number of renewals }.
-- Events: none.
local name, holder, lapsed = unpack(ARGV, 4)

local lease = key('duty', name)
local read = redis.call('HMGET', lease, 'holder', 'renewals')
local current, renewals = read[1], read[2]
if not current or current == holder or current .. ':' .. renewals == lapsed then
  current, renewals = holder, redis.call('HINCRBY', lease, 'renewals', 1)
  redis.call('HSET', lease, 'holder', holder)
end
return { current, tostring(renewals) }
