-- Grant an owner the device memory for all parts that it names, or for none of them and keep its place in the line.
-- Arguments: device, owner, family, lease_s, turn_s, budget_mib, asks (JSON list of the parts that it asks to leave),
--   force ('1': pinned parts leave too), parts (JSON list of {id, mib, cost_s, pinned, work}), waited_since (when the
--   job first asked, of which this is a later stage; '0' for the first stage).
-- Keys: devices, residents, memory_waits, pinned.
-- Returns: 'granted', 'waiting', or 'leave' when one of its own parts must leave first; then what `device_memory`
--   returns: now, residents, waits.
-- Events: none.
local device, owner, family, lease_s, turn_s, budget_mib, asks, force, parts, waited_since = unpack(ARGV, 4)

local lease_until = now + tonumber(lease_s)
local wanted, total = {}, 0
for _, part in ipairs(cjson.decode(parts)) do
  wanted[part.id] = part
  total = total + part.mib
end
local residents, waits = read_residents(device), live_waits(device)

-- When the owner's turn with each of its models began, where it has not ended: the parts of a model share one turn,
-- so that a job whose stages need them one after the other keeps it, and does not get a new one with each stage.
local turns = {}
for id, row in pairs(residents) do
  if row.owner == owner and row.state ~= 'asleep' and not row.work and now - row.turn_began < tonumber(turn_s) then
    turns[model_of(id)] = math.max(turns[model_of(id)] or 0, row.turn_began)
  end
end

-- What others hold, and what this owner holds already. A part whose owner is gone is held until it is released.
local held, in_turn, must_leave, taken = 0, true, false, false
for id, row in pairs(residents) do
  if row.state ~= 'asleep' then held = held + row.mib end
  if row.owner == owner and wanted[id] and not row.work and now - row.turn_began >= tonumber(turn_s) then
    in_turn = false
  end
end
local missing = 0
for id, part in pairs(wanted) do
  local row = residents[id]
  if row and row.owner == owner and row.state == 'evicting' then must_leave = true end
  if row and row.owner ~= owner then
    -- Of a process that has ended and was replaced by this one: until somebody has seen that, it is held.
    taken, in_turn, missing = true, false, missing + part.mib
  elseif not row or row.state == 'asleep' then
    missing = missing + part.mib
    if not part.work and not turns[model_of(id)] then in_turn = false end
  elseif part.mib > row.mib then
    missing = missing + part.mib - row.mib
  end
end

-- Who waits longer goes first, but for an owner whose turn has not ended. Nobody waits behind a request that cannot
-- be granted at the moment whoever leaves, because other programs hold too much.
-- A later stage of a job keeps the place of the first.
local since, ahead = now, 0
if tonumber(waited_since) > 0 then since = math.min(now, tonumber(waited_since)) end
if waits[owner] then since = math.min(since, waits[owner].since) end
for other, wait in pairs(waits) do
  local is_ahead = other ~= owner and (wait.since < since or wait.since == since and other < owner)
  if is_ahead and wait.needed_mib <= tonumber(budget_mib) then ahead = ahead + wait.needed_mib end
  -- Who is behind gets a part of this owner's only where it is of no use, because its request does not fit.
  if other ~= owner and (wait.force or not in_turn and (is_ahead or total > tonumber(budget_mib))) then
    for _, id in ipairs(wait.asks) do
      if wanted[id] and residents[id] and residents[id].state == 'resident' then must_leave = true end
    end
  end
end
if in_turn then ahead = 0 end

local answer = 'waiting'
if must_leave then
  answer = 'leave'
elseif not taken and (missing == 0 or held + missing + ahead <= tonumber(budget_mib)) then
  answer = 'granted'
  for id, part in pairs(wanted) do
    local row = residents[id]
    if not row or row.state == 'asleep' then
      row = { state = 'loading', since = now, turn_began = turns[model_of(id)] or now }
    end
    row.mib = math.max(part.mib, row.state ~= 'loading' and row.mib or 0)
    local pinned = redis.call('HGET', key('pinned'), model_of(id))
    row.pinned = part.pinned
    if pinned then row.pinned = pinned == '1' end
    row.owner, row.family, row.cost_s = owner, family, part.cost_s
    row.work, row.busy, row.used_at, row.lease_until = part.work, true, now, lease_until
    write_resident(device, id, row)
  end
  redis.call('HDEL', key('memory_waits', device), owner)
  redis.call('SADD', key('devices'), device)
else
  local wait = { family = family, since = since, needed_mib = missing, asks = cjson.decode(asks), force = force == '1',
    lease_until = lease_until }
  redis.call('HSET', key('memory_waits', device), owner, cjson.encode(wait))
end
return { answer, timestamp(now), redis.call('HGETALL', key('residents', device)),
  redis.call('HGETALL', key('memory_waits', device)) }
