//go:build plant_heartbeat_fastpath

package replica

const heartbeatsThroughMainLoop = false
