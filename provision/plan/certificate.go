package plan

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"
)

// certificateDetails names the fields in which two PEM certificates differ.
// What is wanted is empty when it has yet to be made.
func certificateDetails(have, want string) []string {
	if want == "" {
		if old := parse(have); old != nil {
			return []string{"a new one replaces the one until " + day(old.NotAfter)}
		}
		return []string{"a new one"}
	}
	to := parse(want)
	if to == nil {
		return nil
	}
	from := parse(have)
	if from == nil {
		return []string{describe(to)}
	}
	var details []string
	for _, field := range []struct{ name, from, to string }{
		{"subject", from.Subject.CommonName, to.Subject.CommonName},
		{"names", names(from), names(to)},
		{"issuer", issuer(from, to), issuer(to, from)},
		{"expires", day(from.NotAfter), day(to.NotAfter)},
	} {
		if field.from != field.to {
			details = append(details, arrow(field.name, field.from, field.to))
		}
	}
	if len(details) == 0 {
		details = append(details, arrow("serial", serial(from), serial(to)))
	}
	return details
}

func parse(text string) *x509.Certificate {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return cert
}

func describe(c *x509.Certificate) string {
	text := c.Subject.CommonName
	if n := names(c); n != "" {
		text += " (" + n + ")"
	}
	return fmt.Sprintf("%s, by %s, until %s", text, c.Issuer.CommonName, day(c.NotAfter))
}

func names(c *x509.Certificate) string {
	all := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// issuer tells two CAs of one name apart by their keys.
func issuer(c, other *x509.Certificate) string {
	text := c.Issuer.CommonName
	if !bytes.Equal(c.AuthorityKeyId, other.AuthorityKeyId) {
		text += fmt.Sprintf(" (key %.8x)", c.AuthorityKeyId)
	}
	return text
}

func serial(c *x509.Certificate) string { return fmt.Sprintf("%.8x", c.SerialNumber.Bytes()) }

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
