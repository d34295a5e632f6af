-- Lease the enhancement of a queued job: stage `enhancing`, the job stays queued.
-- Arguments: id, run, lease_s, token (the same token gets the same lease again), document_version (the
--   newest that this release reads).
-- Keys: job, doc, stream.
-- Returns: { the record, the job document }, or false: the job does not await an enhancement, is to be cancelled,
--   another token's lease is alive, or the document is of a newer release.
-- Events: a `state` item.
local id, run, lease_s, token, document_version = unpack(ARGV, 4)

local job = read_record(id)
if not awaits_enhancement(job, run) or job.cancel then return false end
if job.enhancer ~= token and tonumber(job.enhancing_until or 0) > now then return false end
local document = redis.call('GET', key('doc', id))
if not document or version_of(document) > tonumber(document_version) then return false end
redis.call('HSET', key('job', id), 'enhancer', token, 'enhancing_until', timestamp(now + tonumber(lease_s)),
  'stage', 'enhancing')
if job.stage ~= 'enhancing' then
  job.stage = 'enhancing'
  add_state_item(id, job, 'queued', job.attempt)
end
return { flat_record(id), document }
