-- Read what tells whether recovery, queues and deliveries are alive.
-- Arguments: stuck_s (a lease is stuck when it ended longer ago), queues (separated by spaces).
-- Keys: sweep, leases, due, quarantine, letters:pending, queued, job, claimed.
-- Returns: { now, time of the last sweep or '', the phases that failed in it, number of stuck leases, time since when
--   the most overdue callback has been due or '', number of quarantined jobs, number of pending callbacks, then for each queue: since when its
--   oldest due job has waited or '', time of its last claim or '' }.
-- Events: none.
local stuck_s, queues = unpack(ARGV, 4)
local PRIORITIES, BATCH, BATCHES = 9, 50, 20

-- Since when the due job of a priority has waited that has waited longest. Jobs of one priority are in the order in
-- which they were queued. So none after the first job that was never put off (queued again, for a retry or after a
-- loss) has waited longer than that one: the walk ends there. A thousand jobs that were put off are read at most.
local function waiting_since(queue, priority)
  local from, to = queue_score(priority, 0), '(' .. queue_score(priority + 1, 0)
  local longest
  for batch = 0, BATCHES - 1 do
    local ids = redis.call('ZRANGEBYSCORE', key('queued', queue), from, to, 'LIMIT', batch * BATCH, BATCH)
    for _, id in ipairs(ids) do
      -- `pcall`: a key that holds no record is skipped here, and set aside by the sweep.
      local times = redis.pcall('HMGET', key('job', id), 'queued_at', 'due_at')
      local queued_at, due_at = tonumber(times[1] or nil), tonumber(times[2] or nil)
      if queued_at and due_at then
        local since = math.max(queued_at, due_at)
        if since <= now then longest = math.min(longest or since, since) end
        if due_at <= queued_at then return longest end
      end
    end
    if #ids < BATCH then break end
  end
  return longest
end

local function last_claim(queue)
  local latest
  local fields = redis.call('HGETALL', key('claimed', queue))
  for i = 1, #fields, 2 do
    if string.sub(fields[i], -3) == ':at' then latest = math.max(latest or 0, tonumber(fields[i + 1]) or 0) end
  end
  return latest
end

local sweep = redis.call('HMGET', key('sweep'), 'at', 'failed')
local overdue = redis.call('ZRANGE', key('due'), 0, 0, 'WITHSCORES')[2]
local answer = {
  timestamp(now), sweep[1] or '', sweep[2] or '',
  redis.call('ZCOUNT', key('leases'), '-inf', timestamp(now - tonumber(stuck_s))), overdue or '',
  redis.call('ZCARD', key('quarantine')), redis.call('ZCARD', key('letters', 'pending')),
}
for queue in string.gmatch(queues, '%S+') do
  local oldest
  for priority = 0, PRIORITIES do
    local since = waiting_since(queue, priority)
    if since then oldest = math.min(oldest or since, since) end
  end
  local claimed = last_claim(queue)
  answer[#answer + 1] = oldest and timestamp(oldest) or ''
  answer[#answer + 1] = claimed and timestamp(claimed) or ''
end
return answer
