-- The outbox: one hash an event at `event:<id>`. `rows:<job>` holds a job's pending events by sequence,
-- `letters:<state>` all events of a state by time, `due` the jobs with a pending event by the time at which
-- its oldest one may be delivered.

-- The oldest pending event of a job, nil when nothing is pending. Ids without an event are removed.
local function oldest_event(id)
  local rows = key('rows', id)
  while true do
    local event = redis.call('ZRANGE', rows, 0, 0)[1]
    if not event or redis.call('EXISTS', key('event', event)) == 1 then return event end
    redis.call('ZREM', rows, event)
  end
end

-- Note in `due` when the oldest pending event of a job may be leased.
local function schedule_job(id)
  local head = oldest_event(id)
  if not head then return redis.call('ZREM', key('due'), id) end
  local times = redis.call('HMGET', key('event', head), 'due_at', 'lease_until')
  local due = math.max(tonumber(times[1] or 0) or 0, tonumber(times[2] or 0) or 0)
  redis.call('ZADD', key('due'), timestamp(due), id)
end

local function delete_event(event)
  for _, state in ipairs({ 'pending', 'delivered', 'dead' }) do
    redis.call('ZREM', key('letters', state), event)
  end
  redis.call('DEL', key('event', event))
end

-- Delete the progress events of a job that nobody is delivering: a newer event replaces them.
local function delete_pending_progress(id)
  for _, event in ipairs(redis.call('ZRANGE', key('rows', id), 0, -1)) do
    local row = redis.call('HMGET', key('event', event), 'metadata', 'lease_until')
    if row[1] and tonumber(row[2] or 0) <= now then
      redis.call('ZREM', key('rows', id), event)
      delete_event(event)
    end
  end
end

-- Store a pending event of a kind ('processing' or the terminal status), due now. Returns its id.
local function store_event(id, job, seq, kind, outcome, metadata)
  local event = 'msg_' .. string.sub(redis.sha1hex(table.concat({ id, job.order, job.run, seq }, '\0')), 1, 32)
  local row = {
    'job', id, 'run', job.run, 'seq', seq, 'kind', kind, 'attempt', job.attempt, 'at', timestamp(now),
    'queued_at', job.queued_at, 'facts', job.facts, 'state', 'pending', 'due_at', timestamp(now),
    'deliveries', 0,
  }
  local optional = {
    claimed_at = job.claimed_at, worker = job.worker, callback_url = job.callback_url, outcome = outcome,
    metadata = metadata, refused = job.refused,
  }
  for name, value in pairs(optional) do
    row[#row + 1] = name
    row[#row + 1] = value
  end
  redis.call('HSET', key('event', event), unpack(row))
  redis.call('ZADD', key('rows', id), seq, event)
  redis.call('ZADD', key('letters', 'pending'), timestamp(now), event)
  schedule_job(id)
  return event
end

-- Add an event as `store_event` does, with the next sequence number of its job. Returns its id, or nil for a job whose
-- callbacks are suppressed.
local function add_event(id, job, kind, outcome, metadata)
  if job.quiet then return nil end
  delete_pending_progress(id)
  return store_event(id, job, redis.call('HINCRBY', key('job', id), 'seq', 1), kind, outcome, metadata)
end

-- Move an event out of `pending`: into `state` with the HTTP status of its last delivery, or delete it when
-- `state` is nil.
local function settle_event(event, row, state, status)
  redis.call('ZREM', key('rows', row.job), event)
  redis.call('ZREM', key('letters', 'pending'), event)
  local name = key('event', event)
  if state then
    redis.call('ZADD', key('letters', state), timestamp(now), event)
    redis.call('HSET', name, 'state', state, 'settled_at', timestamp(now), 'last_status', status)
    redis.call('HDEL', name, 'lease_until', 'taken_by')
  else
    redis.call('DEL', name)
  end
  schedule_job(row.job)
end
