-- Limits of callers. An allowance is a quota of units per window of seconds that refills continuously (GCRA): the key
-- `allowance:<name>` holds how much of it was used at which time, and expires when all of it is there again.

-- Seconds within which the waiting jobs of a caller at the limit are looked through once.
local LOOK_EVERY_S = 1
local WAITING_TTL_S = 7 * 86400
-- Jobs that are looked at with each new one.
local LOOK_AT = 2

-- How many units of an allowance are used. A text of another form counts as absent, and one that is damaged is no
-- longer used after a window.
local function used_of(name, quota, window)
  local stored = redis.pcall('GET', key('allowance', name))
  local used, at = string.match(type(stored) == 'string' and stored or '', '^(%S+) (%S+)$')
  used, at = tonumber(used or nil), seconds(at)
  if not (used and used >= 0 and at) then return 0 end
  return math.max(0, math.min(used, quota) - math.max(0, now - at) * quota / window)
end

-- Take from allowances, from all or from none. A charge is { name, quota, window_s, cost }; a cost above the quota counts
-- as the quota.
-- Returns nil, or the number of a charge that is refused, from 0, and the seconds until none is; then the standings:
-- for each charge what remains, and the seconds until the whole quota is there.
local function take(charges)
  local refused, wait, used, standings = nil, 0, {}, {}
  for i, charge in ipairs(charges) do
    local name, quota, window, cost = unpack(charge)
    used[i] = used_of(name, quota, window)
    local excess = used[i] + math.min(cost, quota) - quota
    -- Sums of fractions are not exact.
    if excess > 1e-9 * quota and excess * window / quota > wait then refused, wait = i - 1, excess * window / quota end
  end
  for i, charge in ipairs(charges) do
    local name, quota, window, cost = unpack(charge)
    if not refused then
      used[i] = used[i] + math.min(cost, quota)
      -- The ledger's time may be slower than the server's clock, by which keys expire.
      local lifetime = math.ceil(1200 * used[i] * window / quota) + 1000
      redis.call('SET', key('allowance', name), string.format('%.15g', used[i]) .. ' ' .. timestamp(now), 'PX', lifetime)
    end
    standings[#standings + 1] = timestamp(math.max(0, quota - used[i]))
    standings[#standings + 1] = timestamp(used[i] * window / quota)
  end
  return refused, wait, standings
end

-- Take jobs that do not wait any more out of the first ones of a caller, up to an index.
local function drop_started(name, last)
  for _, id in ipairs(redis.call('ZRANGE', name, 0, last)) do
    if redis.call('HGET', key('job', id), 'status') ~= 'queued' then redis.call('ZREM', name, id) end
  end
end

-- The number of jobs of a caller that wait for their first start, or again after a retry. All of them are looked
-- through when the number reaches the limit, at most once in a while.
local function waiting_jobs(caller, limit)
  local name = key('waiting', caller)
  local count = redis.pcall('ZCARD', name)
  if type(count) ~= 'number' then
    redis.call('DEL', name)
    return 0
  end
  if count < limit then return count end
  if redis.call('SET', key('waiting_looked', caller), '1', 'NX', 'PX', 1000 * LOOK_EVERY_S) then
    drop_started(name, -1)
  end
  return redis.call('ZCARD', name)
end

-- Hold a new run of a job to the limits in a JSON document of `records.allowances`; '' for none.
-- Returns what the client reads: the standings, or { 'refused', the limit, seconds to wait, the standings }; and whether
-- it is refused.
local function admit_run(limits, id, queue)
  if limits == '' then return {}, false end
  limits = cjson.decode(limits)
  if limits.queue_depth and redis.call('ZCARD', key('queued', queue)) >= limits.queue_depth then
    return { 'refused', 'queue_depth', '0' }, true
  end
  if limits.user_queued and waiting_jobs(limits.counted_as, limits.user_queued) >= limits.user_queued then
    return { 'refused', 'user_queued', '0' }, true
  end
  local refused, wait, standings = take(limits.charges)
  if refused then return { 'refused', tostring(refused), timestamp(wait), unpack(standings) }, true end
  if limits.user_queued then
    local name = key('waiting', limits.counted_as)
    -- Jobs start in this order, so most of those that have started are the first.
    drop_started(name, LOOK_AT - 1)
    redis.call('ZADD', name, timestamp(now), id)
    redis.call('EXPIRE', name, WAITING_TTL_S)
  end
  return standings, false
end
