package inventory

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
)

// foreignName returns our key for one that other installers, or common sense,
// would use.
func foreignName(key string) string {
	switch strings.ToLower(key) {
	case "hosts", "nodes", "masters", "servers", "members", "machines":
		return "controllers"
	case "ip", "host", "hostname", "publicaddress", "public_ip":
		return "address"
	case "privateaddress", "internal_ip", "internalip", "private_ip", "advertiseaddress":
		return "internalAddress"
	case "keypath", "keyfile", "key", "ssh_key", "privatekey":
		return "identityFile"
	case "jump", "jumphost", "proxyjump", "gateway":
		return "bastion"
	case "fingerprint", "hostkeyfingerprint":
		return "hostKey"
	case "sans", "extra_sans":
		return "extraSANs"
	case "name", "clustername":
		return "cluster"
	case "data-dir", "data_dir":
		return "dataDir"
	}
	return ""
}

func isPassword(key string) bool {
	key = strings.ToLower(key)
	return strings.Contains(key, "passw") || strings.Contains(key, "passphrase") || strings.Contains(key, "secret")
}

// unknownKey says what is wrong with a key that its mapping does not have.
// The value is never repeated: it may be a secret.
func unknownKey(field, key string, known map[string]int) (text, hint string) {
	switch {
	case isPassword(key):
		return "a password does not belong in an inventory",
			"remove it, and use a key (identityFile or ssh-agent) and sudo without a password"
	case key == "<<":
		return "merge keys are not supported", "write shared settings once, under ssh or server at the top"
	}
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	if nearest := nearestName(key, names); nearest != "" {
		return "is not a known key", fmt.Sprintf("did you mean %s?", nearest)
	}
	where := "here"
	if field != "" {
		where = "in " + field
	}
	return "is not a known key", fmt.Sprintf("the keys %s are %s", where, strings.Join(names, ", "))
}

// nearestName returns the name that key was probably meant to be, or "".
func nearestName(key string, names []string) string {
	if name := foreignName(key); slices.Contains(names, name) {
		return name
	}
	best, bestScore := "", 0.49 // less alike than half is a different word
	for _, name := range names {
		score := levenshtein.Match(strings.ToLower(key), strings.ToLower(name), nil)
		if score > bestScore {
			best, bestScore = name, score
		}
	}
	return best
}
