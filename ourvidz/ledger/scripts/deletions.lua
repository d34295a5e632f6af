-- Find the jobs whose deletion began long ago and has not ended, longest ago first.
-- Arguments: older_than_s, limit.
-- Keys: deleting.
-- Returns: job ids.
-- Events: none.
local older_than_s, limit = unpack(ARGV, 4)

local before = timestamp(now - tonumber(older_than_s))
return redis.call('ZRANGEBYSCORE', key('deleting'), '-inf', before, 'LIMIT', 0, limit)
