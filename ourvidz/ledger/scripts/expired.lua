-- Find jobs whose lease has expired, longest ago first.
-- Arguments: limit.
-- Keys: leases.
-- Returns: job ids.
-- Events: none.
local limit = unpack(ARGV, 4)

return redis.call('ZRANGEBYSCORE', key('leases'), '-inf', timestamp(now), 'LIMIT', 0, limit)
