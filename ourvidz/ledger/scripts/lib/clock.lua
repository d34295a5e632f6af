-- The ledger's time. Every script and every deadline uses this one and not the server's clock, which may be set, and
-- which another server has after a failover.
-- It does not go back: while the server's clock is behind it, it runs a tenth slower until the clock has caught up,
-- so a deadline is reached at most a tenth later. `clock` keeps the last reading. Without one, or with one that is
-- damaged, the time goes on at the newest time that is stored of anything, and the reading is stored again.

local CATCH_UP_SPEED = 0.9
-- Seconds of the server's clock that count at that speed at once: more than that was no time but a step forward.
local LONGEST_PASS_S = 5
-- Seconds between two readings that are stored: a step back is noticed to within this.
local STORE_EVERY_S = 1
-- Until a sweep has noted what the settings say.
local SILENCE_S, LEASE_S = 6, 10
-- A later time (of the year 2242 or after) is damage. Up to it, microseconds are exact numbers.
local LATEST_S = 2 ^ 33

local wall, now
-- No lease ends before this time. When the ledger's time has jumped, or no script has run for longer than a silence
-- between sweeps, then live workers could not renew: each has one lease from there on to come back.
local leases_hold_until

-- A stored text as seconds; nil when it is absent or damaged.
local function seconds(text)
  local number = tonumber(text or nil)
  return number and number >= 0 and number <= LATEST_S and number or nil
end

-- The newest time in the indexes by time, and 0 without one.
local function newest_time()
  local newest = 0
  local indexes = { 'workers', 'finished', 'quarantine', 'letters:pending', 'letters:delivered', 'letters:dead' }
  for _, name in ipairs(indexes) do
    local top = redis.pcall('ZREVRANGEBYSCORE', key(name), LATEST_S, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    newest = math.max(newest, seconds(top[2]) or 0)
  end
  return newest
end

do
  wall = tonumber(ARGV[2])
  if not wall then
    local time = redis.call('TIME')
    wall = tonumber(time[1]) + tonumber(time[2]) / 1000000
  end
  local stored = redis.pcall('HMGET', key('clock'), 'wall', 'now', 'silence_s', 'lease_s', 'leases_hold_until')
  -- `pcall`, here and below: a server that takes no writes at the moment still answers scripts that only read.
  if stored.err and string.find(stored.err, 'WRONGTYPE', 1, true) then redis.pcall('DEL', key('clock')) end
  local last_wall, last_now = seconds(stored[1]), seconds(stored[2])
  local known = last_wall and last_now
  local passed = known and wall - last_wall or 0
  local passed_at_most = CATCH_UP_SPEED * math.min(math.max(passed, 0), LONGEST_PASS_S)
  now = math.max(wall, (known and last_now or newest_time()) + passed_at_most)
  local silence_s, lease_s = seconds(stored[3]) or SILENCE_S, seconds(stored[4]) or LEASE_S
  leases_hold_until = math.min(seconds(stored[5]) or 0, now + lease_s)
  local jumped = passed < -STORE_EVERY_S or passed > silence_s
  -- The first reading, or the first after damage: how long the server was away is not known.
  jumped = jumped or not known and redis.call('EXISTS', key('leases')) == 1
  if jumped then leases_hold_until = math.max(leases_hold_until, now + lease_s) end
  if jumped or not known or passed < 0 or passed >= math.min(STORE_EVERY_S, silence_s / 3) then
    redis.pcall('HSET', key('clock'), 'wall', timestamp(wall), 'now', timestamp(now), 'leases_hold_until',
      timestamp(leases_hold_until))
  end
end
