-- The health of a CompressionRun for Argo CD, from its conditions.
-- Retries are the operator's business: a run that goes on is Progressing, and its message says what went wrong so far.
-- So is one whose pods find no place, or whose image cannot be pulled: that may heal by itself, and Degraded says it.
local status = obj.status
if status == nil or status.conditions == nil then
  return { status = "Progressing", message = "Waiting for the operator to look at the run" }
end
local generation = obj.metadata.generation or 0
local behind = (status.observedGeneration or 0) < generation
local conditions = {}
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    conditions[condition.type] = condition
  end
end

-- What keeps the operator from acting on the run at all (a right that it lacks, say) is told of the newest edit too.
local trouble = conditions.Degraded
local stands = conditions.Progressing or conditions.Ready or conditions.Stalled or conditions.Suspended
if trouble ~= nil and (behind or stands == nil) and (trouble.observedGeneration or 0) >= generation then
  local waits = trouble.reason == "QuotaExceeded" and "Progressing" or "Degraded"
  return { status = waits, message = trouble.reason .. ": " .. trouble.message }
end
if behind then
  return { status = "Progressing", message = "Waiting for the operator to look at the newest edit" }
end

if conditions.Stalled ~= nil then
  return { status = "Degraded", message = conditions.Stalled.message }
end
if conditions.Ready ~= nil then
  return { status = "Healthy", message = conditions.Ready.message }
end
if conditions.Suspended ~= nil then
  return { status = "Suspended", message = conditions.Suspended.message }
end
local message = status.phase or "Pending"
if conditions.Progressing ~= nil then
  message = message .. ": " .. conditions.Progressing.message
end
if conditions.Degraded ~= nil then
  message = message .. " (" .. conditions.Degraded.reason .. ": " .. conditions.Degraded.message .. ")"
end
return { status = "Progressing", message = message }
