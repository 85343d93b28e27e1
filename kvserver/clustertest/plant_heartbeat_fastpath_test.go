//go:build plant_heartbeat_fastpath

package clustertest

func init() { plantTags = append(plantTags, "plant_heartbeat_fastpath") }
