-- Read what tells whether recovery, queues and deliveries are alive.
-- Arguments: stuck_s (a lease is stuck when it ended longer ago), queues (separated by spaces).
-- Keys: sweep, leases, due, quarantine, letters:pending, queued, job, claimed.
-- Returns: { now, time of the last sweep or '', the phases that failed in it, number of stuck leases, time since when
--   the most overdue callback has been due or '', number of quarantined jobs, number of pending callbacks, then for each queue: since when its
--   oldest due job has waited or '', time of its last claim or '' }.
-- Events: none.
local stuck_s, queues = unpack(ARGV, 4)
local PRIORITIES, CANDIDATES = 9, 5

-- Jobs of one priority are in the order of their registration, so the first due one has waited longest.
local function waiting_since(queue, priority)
  local from, to = queue_score(priority, 0), '(' .. queue_score(priority + 1, 0)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('queued', queue), from, to, 'LIMIT', 0, CANDIDATES)) do
    -- `pcall`: a key that holds no record is skipped here, and set aside by the sweep.
    local times = redis.pcall('HMGET', key('job', id), 'queued_at', 'due_at')
    local since = math.max(tonumber(times[1] or 0) or 0, tonumber(times[2] or 0) or 0)
    if times[1] and since <= now then return since end
  end
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
