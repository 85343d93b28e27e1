//go:build !plant_heartbeat_fastpath

package replica

// heartbeatsThroughMainLoop is switched off only by the build tag that shows
// that the fault tests notice.
const heartbeatsThroughMainLoop = true
