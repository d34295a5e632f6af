-- Find jobs with an event that is due and not leased, most overdue first; of more than `limit` any stretch.
-- Arguments: limit.
-- Keys: due.
-- Returns: job ids.
-- Events: none.
local limit = unpack(ARGV, 4)

return due_jobs(tonumber(limit))
