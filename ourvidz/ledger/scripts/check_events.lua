-- Compare what is stored of some outbox events with itself, and mend it if asked to.
-- Arguments: repair ('1' mends), then the event ids.
-- Keys: event, letters, rows, due, job.
-- Returns: { event, code, detail } for each finding.
-- Events: none; a pending one that could not be found is due again, if mended.
local repair = unpack(ARGV, 4, 4)
local FIRST_ID = 5

local findings = {}

local function report(event, code, detail, mend)
  findings[#findings + 1] = { event, code, detail }
  if repair == '1' and mend then mend() end
end

local function check(event)
  local row = read_hash(key('event', event))
  for _, state in ipairs({ 'pending', 'delivered', 'dead' }) do
    local listed = redis.call('ZSCORE', key('letters', state), event)
    if listed and not row then
      report(event, 'dangling', 'in letters:' .. state .. ' without an event', function()
        redis.call('ZREM', key('letters', state), event)
      end)
    elseif listed and row.state ~= state then
      report(event, 'index', 'in letters:' .. state .. ' although it is ' .. tostring(row.state), function()
        redis.call('ZREM', key('letters', state), event)
      end)
    elseif not listed and row and row.state == state then
      report(event, 'index', 'not in letters:' .. state .. ' although it is ' .. state, function()
        redis.call('ZADD', key('letters', state), row.settled_at or row.at or timestamp(now), event)
      end)
    end
  end
  if not row or not row.job then return end
  local queued = redis.call('ZSCORE', key('rows', row.job), event)
  if row.state == 'pending' and not queued then
    report(event, 'index', 'pending, and never due', function()
      redis.call('ZADD', key('rows', row.job), row.seq, event)
      schedule_job(row.job)
    end)
  elseif row.state ~= 'pending' and queued then
    report(event, 'index', 'due although it is ' .. tostring(row.state), function()
      redis.call('ZREM', key('rows', row.job), event)
      schedule_job(row.job)
    end)
  elseif row.state ~= 'pending' and not row.refused and redis.call('EXISTS', key('job', row.job)) == 0 then
    report(event, 'orphan', 'a ' .. tostring(row.state) .. ' event without a job', function() delete_event(event) end)
  end
end

for position = FIRST_ID, #ARGV do check(ARGV[position]) end
return findings
