-- Note that a sweep begins now, and how often sweeps come.
-- Arguments: silence_s, lease_s: when no script has run for longer than silence_s, or the server's clock was set, then
--   no lease ends for lease_s.
-- Keys: clock.
-- Returns: 1.
-- Events: none.
local silence_s, lease_s = unpack(ARGV, 4)

redis.call('HSET', key('clock'), 'silence_s', silence_s, 'lease_s', lease_s)
return 1
