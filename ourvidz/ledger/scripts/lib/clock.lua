-- The ledger's time. Every script and every deadline uses this one and not the server's clock, which may be set, and
-- which another server has after a failover.
-- It does not go back: while the server's clock is behind it, it runs a tenth slower until the clock has caught up,
-- so a deadline is reached at most a tenth later. `clock` keeps the last reading.

local CATCH_UP_SPEED = 0.9
-- Seconds of the server's clock that count at that speed at once: more than that was no time but a step forward.
local LONGEST_PASS_S = 5
-- Seconds between two readings that are stored: a step back is noticed to within this.
local STORE_EVERY_S = 1
-- Until a sweep has noted what the settings say.
local SILENCE_S, LEASE_S = 6, 10

local now
-- No lease ends before this time. When the ledger's time has jumped, or no script has run for longer than a silence
-- between sweeps, then live workers could not renew: each has one lease from there on to come back.
local leases_hold_until

do
  local wall = tonumber(ARGV[2])
  if not wall then
    local time = redis.call('TIME')
    wall = tonumber(time[1]) + tonumber(time[2]) / 1000000
  end
  local stored = redis.call('HMGET', key('clock'), 'wall', 'now', 'silence_s', 'lease_s', 'leases_hold_until')
  local passed = wall - (stored[1] or wall)
  now = math.max(wall, (stored[2] or wall) + CATCH_UP_SPEED * math.min(math.max(passed, 0), LONGEST_PASS_S))
  leases_hold_until = tonumber(stored[5] or 0)
  local silence_s = tonumber(stored[3] or SILENCE_S)
  local jumped = passed < -STORE_EVERY_S or passed > silence_s
  -- The first script of this release: how long the server was away is not known.
  jumped = jumped or not stored[1] and redis.call('EXISTS', key('leases')) == 1
  if jumped then leases_hold_until = math.max(leases_hold_until, now + tonumber(stored[4] or LEASE_S)) end
  if jumped or not stored[1] or passed < 0 or passed >= math.min(STORE_EVERY_S, silence_s / 3) then
    -- `pcall`: a server that takes no writes at the moment still answers scripts that only read.
    redis.pcall('HSET', key('clock'), 'wall', timestamp(wall), 'now', timestamp(now), 'leases_hold_until',
      timestamp(leases_hold_until))
  end
end
