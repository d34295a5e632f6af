-- Put an entry that is refused aside with the reason, and tell its receiver once. The job has no record, so that the
-- caller can push a corrected one under the same id.
-- Arguments: list, entry, report (JSON), limit (entries that are kept), id (absent together with what follows),
--   facts (JSON), callback_url, outcome (JSON).
-- Keys: importing, refused_imports, counters, order, and those of store_event.
-- Returns: the id of the event; '' when none was added; false when another importer was first.
-- Events: `failed`, if an id is given and no job has it.
local list, entry, report, limit, id, facts, callback_url, outcome = unpack(ARGV, 4)

if redis.call('LREM', key('importing', list), 1, entry) == 0 then return false end
redis.call('RPUSH', key('refused_imports'), report)
redis.call('LTRIM', key('refused_imports'), -tonumber(limit), -1)
increment('imports.refused')
if id == '' or redis.call('EXISTS', key('job', id)) == 1 then return '' end
local job = {
  order = next_order(), run = 1, attempt = 0, queued_at = timestamp(now), facts = facts, refused = 1,
}
if callback_url ~= '' then job.callback_url = callback_url end
return store_event(id, job, 1, 'failed', outcome)
