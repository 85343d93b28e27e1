//go:build plant_unconfirmed_reads

package clustertest

func init() { plantTags = append(plantTags, "plant_unconfirmed_reads") }
