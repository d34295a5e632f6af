-- Announce jobs whose oldest event has become due by time: after a pause, or because its lease ended. So that few are
-- announced twice, as many as are missing to `limit` entries of the list.
-- Arguments: limit, worker (an io process: one that drains announces nothing).
-- Keys: due, ready, rows, event, worker.
-- Returns: 1, or 0 when the worker drains.
-- Events: none.
local limit, worker = unpack(ARGV, 4)

if redis.call('HEXISTS', key('worker', worker), 'draining') == 1 then return 0 end
local missing = tonumber(limit) - announced()
if missing > 0 then
  -- `pcall`: a damaged key must not stop the others; the sweep sets its job aside.
  for _, id in ipairs(due_jobs(missing)) do pcall(schedule_job, id) end
end
return 1
