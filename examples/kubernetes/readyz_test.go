package kubernetes

import (
	"flag"
	"fmt"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat"
)

var rounds = flag.Int("rounds", 3, "how often the time to /readyz is measured, on each store in turn")

// TestReadyz measures how long a kube-apiserver takes to be ready on a new store:
// musterd and etcd in turn, so that whatever else the machine does is in both. It
// tells the medians, and by how much musterd's rounds were shorter than the etcd's
// beside them, with the standard error of that. Timings prove nothing on a busy
// machine, so it demands nothing but that both get there.
func TestReadyz(t *testing.T) {
	stores := []string{"etcd", "musterd"}
	seconds := map[string][]float64{}
	for round := range *rounds {
		for _, name := range stores {
			t.Run(fmt.Sprintf("%d %s", round, name), func(t *testing.T) {
				a := startAPIServer(t, startStore(t, name))
				seconds[name] = append(seconds[name], a.Ready.Seconds())
			})
		}
		slices.Reverse(stores)
	}
	shorter := make([]float64, *rounds)
	for i := range shorter {
		shorter[i] = seconds["etcd"][i] - seconds["musterd"][i]
	}
	mean, deviation := stat.MeanStdDev(shorter, nil)
	median := map[string]float64{}
	for name, all := range seconds {
		slices.Sort(all)
		median[name] = all[len(all)/2]
		t.Logf("%s: /readyz after %.3fs, %.3f to %.3f", name, median[name], all[0], all[len(all)-1])
	}
	t.Logf("ratio etcd/musterd of the medians: %.3f", median["etcd"]/median["musterd"])
	t.Logf("musterd's rounds were shorter by %.3fs on average, standard error %.3fs", mean, stat.StdErr(deviation, float64(*rounds)))
}
