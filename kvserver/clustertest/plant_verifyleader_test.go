//go:build plant_verifyleader

package clustertest

func init() { plantTags = append(plantTags, "plant_verifyleader") }
