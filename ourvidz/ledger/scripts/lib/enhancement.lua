-- The enhancement of a queued job's prompt. The record's `enhancement` is absent, 'wanted' or 'over'.

-- Whether a job is queued in this run and its enhancement has not ended yet.
local function awaits_enhancement(job, run)
  return job and job.status == 'queued' and job.run == run and job.enhancement == 'wanted'
end

-- End the enhancement with its result (JSON); a stage that it had set is cleared.
local function close_enhancement(id, job, result)
  local name = key('job', id)
  redis.call('HSET', name, 'enhancement', 'over', 'wording', result)
  redis.call('HDEL', name, 'enhancer', 'enhancing_until', 'stage')
  if job.stage then
    job.stage = nil
    add_state_item(id, job, 'queued', job.attempt)
  end
end
