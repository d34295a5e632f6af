-- Note that a sweep ended now: the gap before the next one is counted from here.
-- Arguments: failed (the phases that failed, separated by spaces).
-- Keys: sweep.
-- Returns: 1.
-- Events: none.
local failed = unpack(ARGV, 4)

redis.call('HSET', key('sweep'), 'at', timestamp(now), 'ended_at', timestamp(now), 'failed', failed)
return 1
