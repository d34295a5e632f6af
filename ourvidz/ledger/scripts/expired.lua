-- Find jobs whose lease has expired, longest ago first. None while workers have time to come back.
-- Arguments: limit.
-- Keys: leases, clock.
-- Returns: job ids.
-- Events: none.
local limit = unpack(ARGV, 4)

if leases_hold_until > now then return {} end
return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', timestamp(now), 'LIMIT', 0, limit)
