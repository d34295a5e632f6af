-- Compare the workers that are there with the records that the caller's backend has of workers, and add an event for
-- each difference. A record is of a worker type at a URL, which several workers may share. The events of a record are
-- delivered under the id `@registration:<type> <url>`, which no job can have, in their order; a newer one replaces those
-- that nobody is delivering.
-- Arguments: presence_s (a worker that is silent for longer is gone), refresh_s (the newest record of a type, and each that
--   was given up, is sent again after this time; '' for never).
-- Keys: workers, worker, registrations, fence, and those of store_event.
-- Returns: the number of events that were added.
-- Events: `registered`; `updated`; `gone`, and then `updated` for another record, in case the backend keeps only one.
local presence_s, refresh_s = unpack(ARGV, 4)

local function stream_of(name) return '@registration:' .. name end

-- The registration in the heartbeat of a worker. Raises an error when there is none.
local function read_registration(data)
  local worker = cjson.decode(data)
  local made = worker.detail.registration
  return {
    name = made.worker_type .. ' ' .. made.worker_url, type = made.worker_type, callback_url = made.callback_url .. '',
    document = made.document .. '', worker = worker.id .. '', since = timestamp(worker.started_at),
    loading = worker.state == 'starting',
  }
end

local function is_newer(one, other) return tonumber(one.since) > tonumber(other.since) end

-- The registrations of the workers that take jobs, by name: that of the newest worker. And all of them, newest first.
local function live_registrations()
  local live, list = {}, {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('workers'), timestamp(now - tonumber(presence_s)), '+inf')) do
    local row = redis.call('HMGET', key('worker', id), 'data', 'left', 'draining', 'failed')
    if row[1] and not (row[2] or row[3] or row[4]) and string.find(row[1], '"registration":', 1, true) then
      local readable, made = pcall(read_registration, row[1])
      local newest = readable and live[made.name]
      if readable and not made.loading and not (newest and is_newer(newest, made)) then live[made.name] = made end
    end
  end
  for _, made in pairs(live) do list[#list + 1] = made end
  table.sort(list, function(one, other)
    if one.since ~= other.since then return is_newer(one, other) end
    return one.name < other.name
  end)
  return live, list
end

-- The records that were sent, by name. Damaged ones are sent again.
local function sent_registrations()
  if type(redis.pcall('HLEN', key('registrations'))) ~= 'number' then redis.call('DEL', key('registrations')) end
  local rows, sent = redis.call('HGETALL', key('registrations')), {}
  for i = 1, #rows, 2 do
    local readable, entry = pcall(cjson.decode, rows[i + 1])
    if readable and type(entry) == 'table' and tonumber(entry.at) then
      sent[rows[i]] = entry
    else
      redis.call('HDEL', key('registrations'), rows[i])
    end
  end
  return sent
end

-- Delete the pending events of a record before its newest one, or all, that nobody is delivering.
local function drop_outdated(name, keep_newest)
  local id = stream_of(name)
  local events = redis.call('ZRANGE', key('rows', id), 0, keep_newest and -2 or -1)
  for _, event in ipairs(events) do
    if (tonumber(redis.call('HGET', key('event', event), 'lease_until') or nil) or 0) <= now then
      redis.call('ZREM', key('rows', id), event)
      delete_event(event)
    end
  end
  if keep_newest and #events > 0 then schedule_job(id) end
end

local live, newest_first = live_registrations()
local sent = sent_registrations()
local added = 0

-- Whether the last event of a record is a dead letter.
local function is_given_up(name)
  local event = sent[name] and sent[name].event
  return event and redis.call('HGET', key('event', event), 'state') == 'dead'
end

local function add(kind, made)
  drop_outdated(made.name, false)
  if is_given_up(made.name) then delete_event(sent[made.name].event) end
  -- As a fence it grows also when the server lost the last ones in a failover.
  local sequence = next_fence()
  local row = {
    order = 0, run = 1, attempt = 0, queued_at = timestamp(now), facts = made.document,
    callback_url = made.callback_url, worker = made.worker, refused = 1,
  }
  made.event = store_event(stream_of(made.name), row, sequence, kind)
  made.at, made.gone, made.loading, made.sent = now, kind == 'gone', nil, nil
  redis.call('HSET', key('registrations'), made.name, cjson.encode(made))
  made.sent = true
  added = added + 1
end

local removed = {}

for name, entry in pairs(sent) do
  drop_outdated(name, true)
  local is_pending = redis.call('EXISTS', key('rows', stream_of(name))) == 1
  if live[name] then
    entry.is_pending = is_pending
  elseif not entry.gone then
    -- After an outage live workers could not be heard of.
    if now >= leases_hold_until then add('gone', entry) end
  elseif not is_pending then
    redis.call('HDEL', key('registrations'), name)
    removed[#removed + 1] = entry
  end
end

local seen_types = {}
for _, made in ipairs(newest_first) do
  local entry, is_newest = sent[made.name], not seen_types[made.type]
  seen_types[made.type] = true
  if not entry or entry.gone then
    add('registered', made)
  elseif entry.since ~= made.since or entry.document ~= made.document or entry.callback_url ~= made.callback_url then
    add('updated', made)
  elseif refresh_s ~= '' and not entry.is_pending and now - entry.at >= tonumber(refresh_s) then
    if is_newest or is_given_up(made.name) then add('updated', made) end
  end
end

-- A backend that keeps one URL may have that of a worker that is gone: no event of it is under way any more.
for _, entry in ipairs(removed) do
  local of_type, of_function
  for _, made in ipairs(newest_first) do
    if made.callback_url == entry.callback_url then
      of_function = of_function or made
      if made.type == entry.type then of_type = of_type or made end
    end
  end
  local next_one = of_type or of_function
  if next_one and not next_one.sent then add('updated', next_one) end
end
return added
