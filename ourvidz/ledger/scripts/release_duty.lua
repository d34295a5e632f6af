-- Give the lease of a duty back, so that another keeper need not wait until it lapses.
-- Arguments: name, holder.
-- Keys: duty.
-- Returns: 1, or 0 when another keeper holds it.
-- Events: none.
local name, holder = unpack(ARGV, 4)

if redis.call('HGET', key('duty', name), 'holder') ~= holder then return 0 end
return redis.call('DEL', key('duty', name))
