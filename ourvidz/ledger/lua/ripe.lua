-- The members of a sorted set whose time has come, most overdue first.
local set, limit = unpack(ARGV, 4)
return redis.call('ZRANGEBYSCORE', key(set), '-inf', stamp(now), 'LIMIT', 0, limit)
